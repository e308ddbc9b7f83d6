"""Search on Ray Tune with Optuna; what it finds is judged after it has ended, by `tune.audit`."""
