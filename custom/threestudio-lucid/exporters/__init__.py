"""What leaves the house: assets in other formats."""
