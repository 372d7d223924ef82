"""dapo-fast: Direct Advantage-Based Policy Optimization (arXiv 2412.18279) on step trees."""

__version__ = "0.1.0"
