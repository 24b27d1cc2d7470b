"""Engine of the fault-injection test."""
