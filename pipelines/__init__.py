"""The factory: sku_matrix.yaml in, judged engines, a manifest and images out."""
