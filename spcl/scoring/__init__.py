"""Numbers from confusion matrices: metrics, protocols, intervals.  numpy only."""
