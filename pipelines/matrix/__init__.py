"""sku_matrix.yaml to rows: the file's form, its checks, and the values that the rest of the factory works with.

Only this package reads that file. What a row needs to be built (steps, versions) belongs in `plan`.
"""
