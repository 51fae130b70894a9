//! Who a client says it is. Claims, never proof: they choose which rules apply, and every rule that a claim
//! could loosen also asks for something that can't be claimed.

/// `connect.client`, as far as access depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Client<'a> {
    /// `client.id`, a name of the wire (`cli`, `openclaw-control-ui`, `node-host`, ...).
    pub id: &'a str,
    /// `client.mode` (`cli`, `backend`, `webchat`, `ui`, `node`, `probe`, ...).
    pub mode: &'a str,
    /// `client.platform`; empty when not said.
    pub platform: &'a str,
    /// `client.deviceFamily`; empty when not said.
    pub device_family: &'a str,
}

impl Client<'_> {
    /// A user interface for operators: the Control UI or the TUI.
    pub fn is_control_ui(&self) -> bool {
        self.is_browser_ui() || self.id == "openclaw-tui"
    }

    /// The Control UI, which runs in a browser.
    pub fn is_browser_ui(&self) -> bool {
        self.id == "openclaw-control-ui"
    }

    /// A chat page, which runs in a browser.
    pub fn is_webchat(&self) -> bool {
        self.mode == "webchat" || self.id == "webchat-ui"
    }

    /// A native application with a user interface.
    pub fn is_native_ui(&self) -> bool {
        self.mode == "ui"
            && matches!(self.id, "openclaw-macos" | "openclaw-ios" | "openclaw-android" | "openclaw-linux")
    }

    /// The command line client itself.
    pub fn is_cli(&self) -> bool {
        self.id == "cli" && self.mode == "cli"
    }

    /// The gateway's own helper processes on its host.
    pub fn is_backend(&self) -> bool {
        self.id == "gateway-client" && self.mode == "backend"
    }
}
