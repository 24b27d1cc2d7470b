"""Programs that are compiled for TPUs."""
