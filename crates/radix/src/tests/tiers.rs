//! Copies between tiers: each plan ended well, ended badly, and overtaken by everything else.
