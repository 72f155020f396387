"""The demonstration and its pages."""
