# The public names for type checkers, which cannot see what __init__.py imports by string.
from samsvae import pl
from samsvae.api import fit, load
from samsvae.errors import SamsvaeError
from samsvae.fitted import Fitted

__all__ = ["Fitted", "SamsvaeError", "__version__", "fit", "load", "pl"]

__version__: str
