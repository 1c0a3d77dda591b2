"""Files and folders: atomic writes, HDF5, model folders, manifests."""
