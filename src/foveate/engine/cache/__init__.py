"""The KV cache that grows without copying itself and can lose tokens; who lies where in it."""
