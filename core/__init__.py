"""The vendor-neutral core: spec, data, catalogue, prices, plan, ledger and job engine. Imports nothing above it."""
