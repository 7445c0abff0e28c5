"""Whether and where to fine-tune: suite, arms, statistics, economics, decision, report."""
