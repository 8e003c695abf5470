"""What only the notebooks use: stored sweeps, curves, drawings, sliders."""
