"""Suites that others wrote, run in guests over our shares and over a local disk of the same guest: ``make conformance``."""
