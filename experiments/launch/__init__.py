"""Jobs for schedulers, made from a config and its plan, so that image, hosts, chips and mesh agree."""
