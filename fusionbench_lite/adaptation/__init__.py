"""Methods that learn something at merge time from unlabelled data.

Each method file builds a parametrisation, the map from a few learnable numbers φ to the merged weights; the subpackage
`engine` drives any of them.
"""
