"""Reporting: records to tables, statistics, figures and pages."""
