"""One file a family of mixers: what each says of itself as a System (see `stateform.hub.adapter`)."""
