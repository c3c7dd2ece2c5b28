"""Reading datasets: folders, manifests, captions, filters."""
