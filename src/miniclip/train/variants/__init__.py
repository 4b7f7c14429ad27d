"""Settings beyond the reference system, off by default: rates by depth, Muon, smaller images first."""
