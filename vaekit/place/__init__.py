"""The machine: Kaggle, Colab or local; its device; how progress is shown."""
