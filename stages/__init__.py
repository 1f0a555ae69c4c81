import os

# Both libraries collect data about the machine to send it over the internet, and write to the home
# folder. They read these when they are imported, which only stages do.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
