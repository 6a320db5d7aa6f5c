"""From a command line to objects: overrides ─ compose ─► Composed ─ parse ─► Settings ─ build ─► sources, model …"""
