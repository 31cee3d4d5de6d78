"""Images: what sandboxes start from. `ensure` builds those that ship with Corral; `Catalog` finds all of them."""

from corral.images.builtin import ensure
from corral.images.catalog import Catalog, StoredImage, share

__all__ = ["Catalog", "StoredImage", "ensure", "share"]
