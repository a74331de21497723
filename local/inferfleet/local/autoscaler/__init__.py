"""Scale local worker processes as KEDA and the HPA would scale pods, from the same ScaledObject.

    scaled_object   reads the manifest, with KEDA's defaults
    triggers        what of its triggers can be had here
    keda            from zero and back to zero: KEDA's part
    hpa             from one to many and back: the HPA's part
    behavior        how fast the HPA may go: windows and policies
    fallback        what is told to the HPA while a trigger fails
    scaler          the parts together, on a clock that the caller owns
    measure         asks RabbitMQ and Prometheus what KEDA would ask them
    replicas        worker processes in place of pods
    live            the loop
    trace           arrivals for a simulation
    simulate        the same decisions in simulated time
    plot            a picture of a simulation

All decisions are pure: they get the time and the readings, and read neither clocks nor queues themselves.
"""
