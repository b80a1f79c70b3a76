"""Clusters: their files, jobs on them, and what is wrong with one."""
