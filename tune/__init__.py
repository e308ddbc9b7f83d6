"""Searches, sweeps and boards over Ray: three commands, and a room for what two are made of."""
