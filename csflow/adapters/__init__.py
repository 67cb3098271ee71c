"""Talk to outside systems, one per module or package; adapters import no other adapter, step or orchestrator."""
