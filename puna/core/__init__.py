"""What every room stands on: errors, typed configuration, events, files, devices, pinned wheels."""
