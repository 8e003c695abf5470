"""Where we are: Kaggle, Colab or a laptop, and what computes there."""
