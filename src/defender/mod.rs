//! Microsoft Defender for Endpoint, Graph hunting and Entra: one method per documented endpoint.

pub mod model;
