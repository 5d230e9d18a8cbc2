"""What optrace costs, measured in ratios: each figure is taken beside what it is compared with, in turns."""
