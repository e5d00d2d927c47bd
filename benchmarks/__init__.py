"""Speed of the package against a reference that is measured in the same run."""
