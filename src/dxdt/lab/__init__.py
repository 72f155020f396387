"""The laboratory: training, measuring, pictures, reports and the command line."""
