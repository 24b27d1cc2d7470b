"""Engines that analyse, plan and merge teacher caches."""
