"""What there is, and where it comes from: components, studies, the values of a configuration."""
