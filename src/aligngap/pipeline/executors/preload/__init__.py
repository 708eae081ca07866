"""What the fork server imports before and after all else (`executors.server`), for what these modules do on import."""
