"""Other people's protocols, spoken with Corral behind them: each a thin translation onto `control` and `node`, with no state of its own that those have."""
