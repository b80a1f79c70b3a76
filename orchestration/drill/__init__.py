"""The drill: processes of a small campaign are killed at seeded moments, and it must end as one that nobody touched."""
