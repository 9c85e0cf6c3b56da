"""Answers judged: samples, answers, records, metrics, intervals, equal work, report."""
