"""Records of the archive, sent again through the Collector to one SIEM alone."""
