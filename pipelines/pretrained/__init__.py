"""Weights made elsewhere, named by reference, become snapshots of the store: once, in the driver, by content.

A reference is a folder in diffusers' format, here or in a bucket, or a model of the hub at a commit:
`org/name@<40 hex>`, `org/name/folder@<40 hex>`.
"""
