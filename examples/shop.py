"""The demo shop: `coatcheck serve shop:app --insecure-localhost`, from this directory.

Its source is coatcheck/farm/demo/shop.py, so that `coatcheck demo` has it wherever coatcheck is installed.
"""

from coatcheck.demo.shop import app

__all__ = ["app"]
