//! (being written)
/// (being written)
pub mod close {
    /// A close code.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CloseCode(pub u16);
    impl CloseCode {
        /// 1008.
        pub const POLICY: Self = Self(1008);
    }
}
