package bench

// Names of the container tools that are measured beside unionfs.
const (
	peerPodman      = "podman"
	peerRunc        = "runc"
	peerBubblewrap  = "bubblewrap"
	peerSkopeoUmoci = "skopeo+umoci"
)

func aboutOther(key Key) string { return key.Work }
