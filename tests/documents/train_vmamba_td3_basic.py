#!/usr/bin/env python3
# train_vmamba_td3_basic.py

import subprocess
import sys

def main():
    """基础训练示例"""
    
    cmd = [
        sys.executable, "train.py",  # changed: was `sys.executable, "main.py",`
        "--algorithm_name", "vmamba_td3",
        "--env_name", "AirSimEnv-v42",
        
        # 网络配置
        "--vmamba_hidden_dim", "64",
        "--vmamba_num_vss_blocks", "2", "2", "4", "2",
        "--feature_dim", "128",
        "--state_feature_dim", "128",
        "--hidden_dim", "256",
        
        # 训练配置
        "--max_timesteps", "200000",
        "--batch_size", "128",
        "--seq_len", "4",
        
        # 学习率
        "--actor_lr", "5e-4",
        "--critic_lr", "1e-3",
        
        # TD3参数
        "--gamma", "0.99",
        "--tau", "0.005",
        "--policy_noise", "0.2",
        "--policy_freq", "2",
    ]
    
    print("开始VMamba-TD3基础训练...")
    subprocess.run(cmd, check=True)

if __name__ == "__main__":
    main()
