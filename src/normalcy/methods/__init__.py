"""All methods, one file each, named as in the literature. ``METHODS`` is the one list; nothing is imported until used."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from normalcy.errors import SettingsError

if TYPE_CHECKING:  # it imports torch, which the names of the methods do not need
    from normalcy.method import Method

METHODS: Mapping[str, str] = {
    "adgan": "normalcy.methods.adgan:ADGAN",
    "alocc": "normalcy.methods.alocc:ALOCC",
    "anogan": "normalcy.methods.anogan:AnoGAN",
    "anomaly_dino": "normalcy.methods.anomaly_dino:AnomalyDINO",
    "autoencoder": "normalcy.methods.autoencoder:Autoencoder",
    "cavga": "normalcy.methods.cavga:CAVGA",
    "cnn_dictionary": "normalcy.methods.cnn_dictionary:CNNDictionary",
    "dagmm": "normalcy.methods.dagmm:DAGMM",
    "ddr_id": "normalcy.methods.ddr_id:DDRID",
    "deep_geo": "normalcy.methods.deep_geo:DeepGEO",
    "deep_if": "normalcy.methods.deep_if:DeepIF",
    "deep_knn": "normalcy.methods.deep_knn:DeepKNN",
    "deep_svdd": "normalcy.methods.deep_svdd:DeepSVDD",
    "dpa": "normalcy.methods.dpa:DPA",
    "dsebm": "normalcy.methods.dsebm:DSEBM",
    "f_anogan": "normalcy.methods.f_anogan:FAnoGAN",
    "ganomaly": "normalcy.methods.ganomaly:GANomaly",
    "gmm": "normalcy.methods.gmm:GMM",
    "gpnd": "normalcy.methods.gpnd:GPND",
    "isolation_forest": "normalcy.methods.isolation_forest:IsolationForest",
    "kde": "normalcy.methods.kde:KDE",
    "lsr": "normalcy.methods.lsr:LSR",
    "mahalanobis": "normalcy.methods.mahalanobis:Mahalanobis",
    "oc_cnn": "normalcy.methods.oc_cnn:OCCNN",
    "oc_nn": "normalcy.methods.oc_nn:OCNN",
    "ocgan": "normalcy.methods.ocgan:OCGAN",
    "ocsvm": "normalcy.methods.ocsvm:OCSVM",
    "padim": "normalcy.methods.padim:PaDiM",
    "patchcore": "normalcy.methods.patchcore:PatchCore",
    "patchwise": "normalcy.methods.patchwise:Patchwise",
    "pca": "normalcy.methods.pca:PCA",
    "piad": "normalcy.methods.piad:PIAD",
    "qspace_vae": "normalcy.methods.qspace_vae:QSpaceVAE",
    "rda": "normalcy.methods.rda:RDA",
    "spatial_uae": "normalcy.methods.spatial_uae:SpatialUAE",
    "texture_gmm": "normalcy.methods.texture_gmm:TextureGMM",
    "vae": "normalcy.methods.vae:VAE",
    "vae_attention": "normalcy.methods.vae_attention:VAEAttention",
    "vq_restoration": "normalcy.methods.vq_restoration:VQRestoration",
    "zscore": "normalcy.methods.zscore:ZScore",
}
"""Name -> "module:class" of the methods that come with normalcy."""

FAMILIES: Mapping[str, str] = {
    "reconstruction": "Autoencoders and VAEs of normal images; the score is what they reconstruct poorly.",
    "restoration": "A VQ-VAE with a prior over its codes; unlikely codes are resampled into the nearest normal image.",
    "decomposition": "An image is split into a normal part and a residual.",
    "adversarial": "GANs and adversarial autoencoders; scored by inversion, reconstruction or a critic.",
    "one-class": "A boundary around normal images in input space or in learned features.",
    "density": "Densities of, or distances to, normal pixels and features, pretrained ones included.",
}
"""Family -> one sentence. A method names its own in ``family``."""

ENTRY_POINT = "normalcy.methods"
"""Other packages add methods in this entry-point group: name -> class."""


def available() -> dict[str, str]:
    """Name -> "module:class" of every method, those of other packages included."""
    return {**{point.name: point.value for point in entry_points(group=ENTRY_POINT)}, **METHODS}


def get(name: str) -> type[Method]:
    """The class of a method by name. Raises SettingsError that lists the available ones."""
    known = available()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise SettingsError(f"There is no method {name!r}{hint} Available: {', '.join(sorted(known))}.")
    module, _, attribute = known[name].partition(":")
    try:
        return cast("type[Method]", getattr(import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"The method {name!r} ({known[name]}) cannot be imported: {error}.") from error
