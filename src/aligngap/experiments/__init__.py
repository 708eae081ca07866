"""Questions: each a package of its arms (sweep), its analysis and the verdict rule fixed before the run."""
