"""Small linear text models: features, inference, and their fitting.

`textmodel.model` and `textmodel.features` need numpy alone; `textmodel.fitting` needs scikit-learn (the extra `dev`) and is
imported by the fit scripts only.
"""
