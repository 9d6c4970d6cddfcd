"""What the documentation site has besides its pages: `make docs` runs these modules, and people may."""
