"""Outside systems, one a file. Adapters never import each other, the steps or an orchestrator."""
