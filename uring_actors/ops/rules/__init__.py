"""Rule files in gitleaks' format: regular expressions with conditions on what they find."""
